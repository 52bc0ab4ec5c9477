// Where a chapter's numbers come from: the server that this page came from, or a recording in the file.

export class Live {
  constructor(server) {
    this.server = server;
    this.live = true;
  }

  trace(text, signal) {
    return this.server.trace({ text }, signal);
  }

  ask(chapter, body, signal) {
    return this.server.about(`v1/how/${chapter}`, { model: this.server.model.id, ...body }, signal);
  }
}

export class Recorded {
  // answers: by chapter what the server would answer; of quantized a list, one a type.
  constructor(answers) {
    this.answers = answers;
    this.live = false;
  }

  async ask(chapter, { type }) {
    const found = type ? this.answers[chapter]?.find((one) => one.type === type) : this.answers[chapter];
    if (!found) throw new Error("This file is a recording without this: open the page with cutaway open.");
    return found;
  }
}
