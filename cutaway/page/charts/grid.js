// A table, which is its own chart.

import { figure } from "./figure.js";

export function grid(spec) {
  return figure(spec, { data: () => ({ columns: spec.columns, rows: spec.rows }) });
}
