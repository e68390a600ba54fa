import { generateText, streamText, tool as makeTool } from "ai";
import { z } from "zod";

export async function stream({ farebox }) {
  let text = "";
  for await (const part of streamText({ model: farebox("fake"), prompt: "Say something." }).textStream) {
    text += part;
  }
  return text;
}

export async function tool({ farebox }) {
  const weather = makeTool({ description: "Of a city", inputSchema: z.object({ city: z.string() }) });
  const { toolCalls } = await generateText({ model: farebox("fake"), prompt: "Weather in Bremen?", tools: { weather } });
  return [toolCalls[0].toolName, JSON.stringify(toolCalls[0].input)];
}
