// Reports of `cutaway attack`: a results.json is read here, in the browser, and opens at the tokens that it names.

import { button, field, make, percent, problem, remark, scrolling, table } from "../elements.js";

const LARGEST = 16e6; // bytes of a report

export function reports(shell) {
  const shown = make("div.stack");
  const input = make("input", { id: "report", type: "file", accept: ".json,application/json", change: async () => {
    const [file] = input.files;
    if (!file) return;
    try {
      if (file.size > LARGEST) throw new Error(`${file.name} has more than ${LARGEST / 1e6} MB, and is no report.`);
      shown.replaceChildren(...drawn(JSON.parse(await file.text()), shell));
    } catch (error) {
      const text = error instanceof SyntaxError || error instanceof TypeError ? `${file.name} is no results.json of cutaway attack.` : error.message;
      shown.replaceChildren(problem(text));
    }
  } });
  return make("div.stack", make("h2", "Reports of attacks"),
    make("p.about", "Open the results.json that ", make("code", "cutaway attack"), " wrote. It stays in this page; what it looked at opens in the loaded model."),
    field("results.json", input), shown);
}

function drawn({ model, probes }, shell) {
  const findings = Object.values(probes).flatMap((one) => one.findings);
  const note = shell.server.models.some((one) => one.id === model) ? null
    : remark(`The report is of ${model}. What opens here is the loaded model, ${shell.server.model.id}, which may be another.`);
  const rows = findings.map(({ probe, title, verdict, arms: [arm] }) => [probe, make("span.wrapped.wide-text", title),
    make("span", { class: verdict === "vulnerable" ? "bad" : verdict === "sound" ? "good" : "quiet" }, verdict),
    arm.unit === "rate" ? `${percent(arm.rate)} (${arm.interval.map((end) => (end === null ? "–" : percent(end))).join(" to ")}, n ${arm.n})` : `${arm.rate}`]);
  const looks = findings.flatMap(({ title, look }) => look.map((one) => [title, one]));
  return [note, scrolling("Findings", table(`What the report of ${model} found`, ["probe", "finding", "verdict", ["attack, 95%"]], rows)),
  looks.length ? make("ul.looks", looks.map(([title, { ids, position, note: text, layer, head }]) => make("li", `${title}: ${text} `,
    button("Open at this token", () => shell.inside(
      { model: shell.server.model.id, prompt_token_ids: ids }, { token: position, ...(layer === null ? {} : { layer, ...(head === null ? {} : { head }) }) }), { label: `Open the model at this token: ${text}` }))))
    : remark("It names no token to open.")].filter(Boolean);
}
