const messages = [{ role: "user", content: "What is the weather in Bremen?" }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "weather", description: "Of a city", parameters } }];

export async function stream({ client }) {
  let text = "";
  for await (const chunk of await client.chat.completions.create({ model: "fake", messages, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  return text;
}

export async function tool({ client }) {
  const answer = await client.chat.completions.create({ model: "fake", messages, tools });
  const call = answer.choices[0].message.tool_calls[0].function;
  return [call.name, call.arguments];
}
