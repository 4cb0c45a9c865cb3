"""Use of tools: servers that speak MCP, who may call what, and the loop between a model's calls and their results."""
