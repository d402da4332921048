// Tables are sorted by their headings and filtered by words. Without this script they are whole, in their first order.
(() => {
  "use strict";
  const FEW = 8; // rows that need no filter
  const order = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const number = /^[-+]?[\d,]*\.?\d+(e[-+]?\d+)?%?$/;

  const element = (tag, attributes, text) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text) made.textContent = text;
    return made;
  };

  // A cell as a number, a text, or null for one without a value, which comes last in either direction.
  const keyOf = (cell) => {
    const text = (cell.dataset.v ?? cell.textContent).trim().replace("\u2212", "-");
    if (text === "" || text === "\u2013") return null;
    return number.test(text) ? parseFloat(text.replaceAll(",", "")) : text;
  };

  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return order.compare(a, b);
  };

  const sort = (body, rows, column, direction) => {
    let sorted = rows;
    if (direction) {
      const keyed = rows.map((row) => [keyOf(row.cells[column]), row]);
      const known = keyed.filter(([key]) => key !== null);
      const unknown = keyed.filter(([key]) => key === null);
      known.sort(([a], [b]) => direction * compare(a, b));
      sorted = [...known, ...unknown].map(([, row]) => row);
    }
    body.append(...sorted);
  };

  const addSorting = (table, rows) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!head.firstChild) return;
      const button = element("button", { type: "button", class: "sort" });
      button.append(...head.childNodes);
      // Behind the heading itself, before what stands below it in small print.
      button.firstChild.after(element("span", { class: "arrow", "aria-hidden": "true" }));
      head.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        // Up, down, and back to the order of the report.
        const next = now === "ascending" ? "descending" : now === "descending" ? null : "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        if (next) head.setAttribute("aria-sort", next);
        sort(table.tBodies[0], rows, column, next === "ascending" ? 1 : next === "descending" ? -1 : 0);
      });
    });
  };

  const addFilter = (table, rows, place) => {
    const label = element("label", { class: "filter" }, "Filter rows ");
    const input = element("input", { type: "search", autocomplete: "off", spellcheck: "false" });
    const count = element("output", {});
    label.append(input);
    const bar = element("p", { class: "controls" });
    bar.append(label, count);
    place.before(bar);
    let texts = null;
    let waiting = 0;
    const apply = () => {
      texts ??= rows.map((row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, index) => {
        row.hidden = !words.every((word) => texts[index].includes(word));
        shown += !row.hidden;
      });
      count.textContent = words.length ? `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows` : "";
    };
    input.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(apply, rows.length > 1000 ? 150 : 0);
    });
  };

  for (const table of document.querySelectorAll("div.data table")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 2) continue;
    addSorting(table, rows);
    if (rows.length > FEW) addFilter(table, rows, table.closest(".scroll"));
  }
})();
