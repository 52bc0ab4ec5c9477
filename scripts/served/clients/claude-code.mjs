// dependencies: @anthropic-ai/claude-code@2.1.332
// Claude Code, headless, with ANTHROPIC_BASE_URL: a prompt answered as text and as a stream of JSON.

import { spawnSync } from "node:child_process";
import { check, home, url } from "./checks.mjs";

// The base URL, a key and a model's name, as its documentation has them; the rest keeps it on this machine.
const settings = { ANTHROPIC_BASE_URL: url, ANTHROPIC_AUTH_TOKEN: "none" };
const quiet = { CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1", DISABLE_AUTOUPDATER: "1", HOME: home };
const env = { PATH: process.env.PATH, ...settings, ...quiet };

function ran(...words) {
  const program = `${import.meta.dirname}/node_modules/@anthropic-ai/claude-code/cli-wrapper.cjs`;
  const done = spawnSync("node", [program, "-p", ...words], { env, cwd: home, encoding: "utf8", timeout: 400_000 });
  if (done.status !== 0) throw new Error(`exit code ${done.status}: ${done.stdout.slice(-200)}${done.stderr.slice(-300)}`);
  return done.stdout.trim();
}

// Its own prompt and tools are some 12,000 tokens, more than SmolLM2 reads.
await check("-p", () => ran("Say hello.", "--model", "long"));
await check("-p --output-format stream-json", () => {
  return ran("Say hello.", "--model", "long", "--output-format", "stream-json", "--verbose");
});
