// Vercel's AI SDK with its OpenAI-compatible provider: node ai-sdk.mjs BASE_URL; prints what it got as JSON
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const provider = createOpenAICompatible({ name: "nanochat", baseURL: process.argv[2], includeUsage: true });
const model = provider("any-name");
const settings = { model, messages: [{ role: "user", content: "hello" }], maxOutputTokens: 12, temperature: 0, maxRetries: 0 };

const whole = await generateText(settings);
const stream = streamText(settings);
let streamed = "";
for await (const part of stream.textStream) streamed += part;
const completion = await generateText({ model: provider.completionModel("any-name"), prompt: "fn main", maxOutputTokens: 4, temperature: 0, maxRetries: 0 });
console.log(JSON.stringify({
  whole: whole.text, streamed, finish: whole.finishReason, usage: (await stream.usage), completion: completion.text.length,
}));
