// What the official JavaScript clients make of a server: node clients.mjs URL prints, per check, "ok" or what went wrong, as JSON.
// The server serves tests/server/saying_engine.py, which says the same to the same request.

import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const url = process.argv[2];
const model = "saying/model";
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });

const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const hello = [{ role: "user", content: "hello" }];
const weather = [{ role: "user", content: "weather" }];

async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

const checks = {
  async chat() {
    const answer = await openai.chat.completions.create({ model, messages: hello });
    assert.equal(answer.choices[0].message.content, "Hello there.");
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.ok(answer.usage.total_tokens > 0);
  },

  async chatStream() {
    const stream = await openai.chat.completions.create({ model, messages: hello, stream: true, stream_options: { include_usage: true } });
    const chunks = await all(stream);
    assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), "Hello there.");
    assert.ok(chunks.at(-1).usage.completion_tokens > 0);
  },

  async chatTools() {
    const tools = [{ type: "function", function: { name: "weather", parameters } }];
    const answer = await openai.chat.completions.create({ model, messages: weather, tools });
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    assert.deepEqual([call.type, call.function.name, JSON.parse(call.function.arguments)], ["function", "weather", { city: "Oslo" }]);
    const runner = openai.chat.completions.stream({ model, messages: weather, tools });
    const message = await runner.finalMessage();
    assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { city: "Oslo" });
  },

  async responses() {
    const answer = await openai.responses.create({ model, input: "hello", instructions: "Be kind.", metadata: { a: "b" } });
    assert.equal(answer.output_text, "Hello there.");
    assert.deepEqual([answer.status, answer.metadata], ["completed", { a: "b" }]);
    assert.equal((await openai.responses.retrieve(answer.id)).output_text, "Hello there.");
    const next = await openai.responses.create({ model, input: "hello", previous_response_id: answer.id });
    const items = await openai.responses.inputItems.list(next.id, { order: "asc" });
    assert.deepEqual(items.data.map((item) => item.role), ["user", "assistant", "user"]);
    await openai.responses.delete(answer.id);
    await assert.rejects(openai.responses.retrieve(answer.id), OpenAI.NotFoundError);
  },

  async responsesStream() {
    const stream = openai.responses.stream({ model, input: "hello" });
    const events = await all(stream);
    assert.deepEqual(events.map((event) => event.sequence_number), events.map((_, number) => number));
    assert.deepEqual([events[0].type, events.at(-1).type], ["response.created", "response.completed"]);
    assert.equal((await stream.finalResponse()).output_text, "Hello there.");
  },

  async responsesTools() {
    const tools = [{ type: "function", name: "weather", parameters, strict: true }];
    const stream = openai.responses.stream({ model, input: "weather", tools });
    const final = await stream.finalResponse();
    const [reasoning, call] = final.output;
    assert.deepEqual([reasoning.type, reasoning.content[0].text], ["reasoning", "They want the weather."]);
    assert.deepEqual([call.type, call.name, JSON.parse(call.arguments)], ["function_call", "weather", { city: "Oslo" }]);
    const output = { type: "function_call_output", call_id: call.call_id, output: "Rain." };
    const answer = await openai.responses.create({ model, input: [output], previous_response_id: final.id, tools });
    assert.equal(answer.output_text, "It rains.");
    const stateless = await openai.responses.create({
      model, input: [{ role: "user", content: "weather" }, ...final.output, output], tools, store: false,
    });
    assert.equal(stateless.output_text, "It rains.");
  },

  async responsesBackground() {
    const made = await openai.responses.create({ model, input: "wait", background: true });
    assert.equal(made.status, "queued");
    assert.equal((await openai.responses.cancel(made.id)).status, "cancelled");
    const stream = await openai.responses.create({ model, input: "hello", background: true, stream: true });
    const events = await all(stream);
    const rest = await all(await openai.responses.retrieve(events[0].response.id, { stream: true, starting_after: 4 }));
    assert.deepEqual(rest, events.slice(5));
  },

  async messages() {
    const message = await anthropic.messages.create({ model, messages: hello, max_tokens: 50, system: "Be kind." });
    assert.deepEqual(message.content.map((block) => block.text), ["Hello there."]);
    assert.equal(message.stop_reason, "end_turn");
    assert.ok(message.usage.input_tokens > 0 && message.usage.output_tokens > 0);
    const counted = await anthropic.messages.countTokens({ model, messages: hello, system: "Be kind." });
    assert.equal(counted.input_tokens, message.usage.input_tokens);
  },

  async messagesStream() {
    const stream = anthropic.messages.stream({ model, messages: hello, max_tokens: 50 });
    assert.equal(await stream.finalText(), "Hello there.");
    assert.equal((await stream.finalMessage()).stop_reason, "end_turn");
    const events = await all(await anthropic.messages.create({ model, messages: hello, max_tokens: 5, stream: true }));
    assert.deepEqual([events[0].type, events.at(-1).type], ["message_start", "message_stop"]);
    assert.equal(events.at(-2).delta.stop_reason, "max_tokens");
  },

  async messagesTools() {
    const tools = [{ name: "weather", input_schema: parameters }];
    const stream = anthropic.messages.stream({ model, messages: weather, max_tokens: 200, tools });
    const streamed = await stream.finalMessage();
    const message = await anthropic.messages.create({ model, messages: weather, max_tokens: 200, tools });
    const bare = (blocks) => blocks.map(({ id, ...block }) => block);
    assert.deepEqual(bare(JSON.parse(JSON.stringify(streamed.content))), bare(message.content));
    const [thinking, call] = message.content;
    assert.deepEqual([thinking.type, thinking.thinking], ["thinking", "They want the weather."]);
    assert.deepEqual([call.type, call.name, call.input, message.stop_reason], ["tool_use", "weather", { city: "Oslo" }, "tool_use"]);
    const result = { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "Rain." }] };
    const conversation = [...weather, { role: "assistant", content: message.content }, result];
    const answer = await anthropic.messages.create({ model, messages: conversation, max_tokens: 200, tools });
    assert.equal(answer.content.at(-1).text, "It rains.");
  },

  async errors() {
    await assert.rejects(openai.chat.completions.create({ model, messages: hello, temperature: 9 }), { status: 400, param: "temperature" });
    await assert.rejects(openai.responses.create({ model: "other", input: "hello" }), { status: 404, code: "model_not_found" });
    await assert.rejects(
      anthropic.messages.create({ model: "other", messages: hello, max_tokens: 5 }),
      (error) => error instanceof Anthropic.NotFoundError && error.error.error.type === "not_found_error",
    );
  },

  async abort() {
    const stream = anthropic.messages.stream({ model, messages: [{ role: "user", content: "wait" }], max_tokens: 200 });
    stream.on("text", () => stream.abort());
    await assert.rejects(stream.finalMessage(), Anthropic.APIUserAbortError);
  },
};

const outcomes = {};
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    outcomes[name] = "ok";
  } catch (error) {
    outcomes[name] = `${error.stack ?? error}`;
  }
}
console.log(JSON.stringify(outcomes));
