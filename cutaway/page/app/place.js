// What a place of the page has: the shell, and through it the server and the other places.

export class Place {
  constructor(shell) {
    this.shell = shell;
  }

  get server() {
    return this.shell.server;
  }

  // Does some work; what the server refuses is shown in `box`.
  async tries(box, work) {
    try {
      return await work();
    } catch (error) {
      return this.shell.failed(error, box);
    }
  }
}
