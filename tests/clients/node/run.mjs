// Runs a client's snippet, then a stream, a tool call, and the snippet again where no budget is left.
// The report is the line of the output that starts with REPORT.

const name = process.argv[2];
const scenario = await import(`./${name}.mjs`);
const snippet = await import("./snippet.mjs");
const report = { streamed: await scenario.stream(snippet), tool: await scenario.tool(snippet) };
try {
  await import("./refused.mjs");
} catch (error) {
  const types = [];
  for (let kind = error; kind; kind = Object.getPrototypeOf(kind)) {
    types.push(kind.constructor.name, String(kind.name));
  }
  report.refused = { types, message: error.message, status: error.status ?? error.statusCode };
}
console.log("\nREPORT " + JSON.stringify(report));
