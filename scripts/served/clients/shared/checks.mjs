// What the JavaScript clients share: the server's address, what is asked of it, and how a check is printed.

export const url = process.argv[2];
export const model = "smollm2";
export const home = process.env.CLIENT_HOME;
export const hello = [{ role: "user", content: "Say hello." }];
const digit = { type: "integer", minimum: 0, maximum: 9 };
export const schema = {
  type: "object",
  properties: { a: digit, b: digit },
  required: ["a", "b"],
};
export const tool = { type: "function", function: { name: "add", description: "Adds.", parameters: schema } };

// Prints whether the work gives an answer.
export async function check(name, work) {
  let why = null;
  try {
    const answer = await work();
    if (!answer || answer.length === 0) throw new Error("the answer is empty");
  } catch (error) {
    why = `${error.name}: ${error.message}`.replaceAll("\n", " ").slice(0, 300);
  }
  console.log("check", JSON.stringify([name, why]));
}

// All that an asynchronous iterable gives.
export async function all(iterable) {
  const made = [];
  for await (const one of iterable) made.push(one);
  return made;
}
