const messages = [{ role: "user", content: "What is the weather in Bremen?" }];
const input_schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ name: "weather", description: "Of a city", input_schema }];

export async function stream({ client }) {
  return await client.messages.stream({ model: "claude", max_tokens: 200, messages }).finalText();
}

export async function tool({ client }) {
  const answer = await client.messages.create({ model: "claude", max_tokens: 200, messages, tools });
  return [answer.content[0].name, JSON.stringify(answer.content[0].input)];
}
