// The server that this page came from: requests, streams, and what its refusals say. The key is kept in memory alone.

const LISTED = 200; // requests that are remembered, by which numbers can be asked for again
const KEPT = 64; // answers about tokens, so that coming back to one asks nothing

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// What is cancelled when the next one begins.
export function instead(before) {
  before?.abort();
  return new AbortController();
}

function inflated(response) {
  return new Response(response.body.pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

export class Server {
  key = "";
  models = [];
  model = null;
  known = new Map();
  asked = new Map(); // what was asked since the place was opened: [path, body] by their text

  headers() {
    const key = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    return { "Content-Type": "application/json", ...key };
  }

  async ask(path, body, signal) {
    const given = body === undefined ? { headers: this.headers() }
      : { method: "POST", headers: this.headers(), body: JSON.stringify(body) };
    if (path.startsWith("v1/")) this.note(path, body);
    let response;
    try {
      response = await fetch(new URL(path, document.baseURI), { ...given, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal(0, "The server does not answer.");
    }
    if (response.ok) return response;
    const found = await response.json().catch(() => null);
    throw new Refusal(response.status, found?.error?.message ?? `The server answered ${response.status}.`);
  }

  async json(path, body, signal) {
    return (await this.ask(path, body, signal)).json();
  }

  note(path, body) {
    const key = JSON.stringify([path, body]);
    this.asked.delete(key);
    this.asked.set(key, [path, body]);
    if (this.asked.size > LISTED) this.asked.delete(this.asked.keys().next().value);
  }

  // The models that answer; the first is chosen. A Refusal of status 401 asks for a key.
  async open() {
    const { data } = await this.json("v1/models");
    this.models = data;
    this.model = data.find((one) => one.id === this.model?.id) ?? data[0];
  }

  // A trace of a text or a conversation, as the explain page's own document, inflated.
  async trace(given, signal) {
    return inflated(await this.ask("v1/trace", { model: this.model.id, format: "page", ...given }, signal));
  }

  // What is asked about a token, once for the same ids and edits. `read` makes the answer of a response.
  async about(path, body, signal, read = (response) => response.json()) {
    const key = JSON.stringify([path, body]);
    this.note(path, body);
    if (!this.known.has(key)) {
      const found = await read(await this.ask(path, body, signal));
      this.known.set(key, found);
      if (this.known.size > KEPT) this.known.delete(this.known.keys().next().value);
    }
    return this.known.get(key);
  }

  // Attention weights as the bytes of docs/serving.md: {maps, shape, pooled, tokens, cells}.
  attention(body, signal) {
    return this.about("v1/attention", { ...body, format: "binary" }, signal, async (response) => {
      const data = await response.arrayBuffer();
      const size = new DataView(data).getUint32(0, true);
      const facts = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size)));
      return { ...facts, cells: new Uint8Array(data, 4 + size) };
    });
  }

  // The recorded trace of the default model, which is a file of the page.
  async recording() {
    return inflated(await this.ask("page/app/recording.bin"));
  }

  // The events of a streamed answer, parsed.
  async* stream(path, body, signal) {
    const response = await this.ask(path, { ...body, stream: true }, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const event = JSON.parse(line.slice(6));
        if (event.error) throw new Refusal(500, event.error.message);
        yield event;
      }
    }
  }

  // The same request for a shell. The key is read from the environment there, and never written here.
  curl(path, body) {
    const bearer = this.key ? ' -H "Authorization: Bearer $CUTAWAY_API_KEY"' : "";
    const given = body === undefined ? "" : ` -H "Content-Type: application/json" -d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
    return `curl ${new URL(path, document.baseURI)}${bearer}${given}`;
  }

  // The same request in Python, with what it comes with alone.
  pythonRequest(path, body) {
    const key = this.key ? ', "Authorization": "Bearer " + os.environ["CUTAWAY_API_KEY"]' : "";
    const data = body === undefined ? "None" : `json.dumps(json.loads(${JSON.stringify(JSON.stringify(body))})).encode()`;
    return [
      `import json${key ? ", os" : ""}, urllib.request`, "",
      `headers = {"Content-Type": "application/json"${key}}`,
      `request = urllib.request.Request(${JSON.stringify(new URL(path, document.baseURI).href)}, ${data}, headers)`,
      "with urllib.request.urlopen(request) as answer:", "    print(json.load(answer))", "",
    ].join("\n");
  }

  // The same answer in Python: by its messages, or by exact ids where it goes on from some.
  python({ model, messages, continue_token_ids: begun, temperature, max_tokens, seed, edits = [] }, prompt) {
    const call = begun ? `generate(${JSON.stringify([...prompt, ...begun])}` : `chat(${JSON.stringify(messages)}`;
    const edit = edits.length ? `, edit=[from_json(one) for one in ${JSON.stringify(edits)}]` : "";
    return [
      "import cutaway", ...(edit ? ["from cutaway.inspect.edits import from_json"] : []), "",
      `lm = cutaway.load(${JSON.stringify(model)})`,
      `answer = lm.${call}, temperature=${temperature}, max_tokens=${max_tokens}, seed=${seed}${edit})`,
      "print(answer.text)", "",
    ].join("\n");
  }
}
