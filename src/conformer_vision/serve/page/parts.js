// Pieces that cards and heat maps are made of. Text comes from files and classes: it is never taken for HTML.

/** Make an element with attributes and children; strings are text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Draw shares as bars: rows of {label, share, head, present}. */
export function bars(rows) {
  const list = element("dl", { class: "bars" });
  for (const { label, share, head = "fused", present = false } of rows) {
    const name = element("dt", {}, element("bdi", {}, label));
    if (present) name.append(" ", element("span", { class: "present" }, "✓ present"));
    const fill = element("span", { class: `fill ${head}` });
    fill.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
    list.append(
      name,
      element("dd", { class: "track", "aria-hidden": "true" }, fill),
      element("dd", { class: "value" }, percent(share)),
    );
  }
  return list;
}

/** Say how long an answer took: on the server by its parts, and in all as the page saw it. */
export function timing(times, all) {
  const parts = [["network", times.inference], ["decoding", times.decode], ["waiting", times.queue]];
  const said = parts.map(([name, value]) => `${name} ${milliseconds(value)}`).join(", ");
  return `${milliseconds(all)} in all; on the server: ${said}`;
}

function milliseconds(value) {
  return value < 9.95 ? `${value.toFixed(1)} ms` : value < 999.5 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

export function megabytes(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}
