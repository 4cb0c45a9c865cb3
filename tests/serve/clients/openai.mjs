// OpenAI's JavaScript client: node openai.mjs BASE_URL; prints what it got as JSON
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const settings = { model: "gpt-4o-mini", messages, max_tokens: 12, temperature: 0 };

const whole = await client.chat.completions.create(settings);
let streamed = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({ ...settings, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const helped = await client.chat.completions.stream(settings).finalChatCompletion();
const text = await client.completions.create({ model: "any", prompt: "fn main", max_tokens: 12, temperature: 0 });
const models = (await client.models.list()).data.map((model) => model.id);
const failures = {};
for (const [name, call] of Object.entries({
  tools: () => client.chat.completions.create({ ...settings, tools: [{ type: "function", function: { name: "f" } }] }),
  schema: () => client.chat.completions.create({ ...settings, response_format: { type: "xml" } }),
  images: () => client.images.generate({ model: "any", prompt: "x" }),
  responses: () => client.responses.create({ model: "any", input: "x", tools: [{ type: "function", name: "f" }] }),
})) {
  try { await call(); failures[name] = null; } catch (error) { failures[name] = { kind: error.constructor.name, status: error.status, param: error.param, message: error.message }; }
}
const embedded = (await client.embeddings.create({ model: "any", input: ["x", "fn main"] })).data.map((row) => row.embedding);
console.log(JSON.stringify({
  embedded,
  model: whole.model, whole: whole.choices[0].message.content, streamed, usage, helped: helped.choices[0].message.content,
  text: text.choices[0].text, models, failures,
}));
