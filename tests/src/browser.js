// Says of a page what its reader gets to see, as JSON in an element of its own.
addEventListener("load", () => {
  // Whoever opens them sees what is in them.
  for (const details of document.querySelectorAll("details")) details.open = true;
  const box = (element) => element.getBoundingClientRect();
  // A pixel may be lost to rounding.
  const inside = (inner, outer) =>
    inner.left >= outer.left - 1 && inner.right <= outer.right + 1 &&
    inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
  const overlap = (one, other) =>
    Math.min(one.right, other.right) - Math.max(one.left, other.left) > 1 &&
    Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 1;
  // Also of text that is turned.
  const scale = ({ a, b }) => Math.hypot(a, b);
  const plot = (svg) => {
    const frame = box(svg);
    const texts = [...svg.querySelectorAll("text")].map((element) => ({
      text: element.textContent.trim(),
      box: box(element),
      pixels: parseFloat(getComputedStyle(element).fontSize) * scale(element.getScreenCTM()),
    }));
    const overlaps = [];
    texts.forEach((one, place) => {
      for (const other of texts.slice(place + 1)) {
        if (overlap(one.box, other.box)) overlaps.push([one.text, other.text]);
      }
    });
    return {
      width: frame.width,
      height: frame.height,
      texts: texts.map((it) => it.text),
      smallest: Math.min(...texts.map((it) => it.pixels)),
      empty: texts.filter((it) => it.box.width === 0).map((it) => it.text),
      outside: texts.filter((it) => !inside(it.box, frame)).map((it) => it.text),
      overlaps,
    };
  };
  const found = {
    width: innerWidth,
    needs: document.documentElement.scrollWidth,
    loads: performance.getEntriesByType("resource").map((it) => it.name),
    plots: [...document.querySelectorAll("svg")].map(plot),
    tables: [...document.querySelectorAll("table")].map((table) =>
      [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim()))),
  };
  const findings = document.createElement("pre");
  findings.id = "findings";
  const escaped = (char) => "\\u" + char.charCodeAt(0).toString(16).padStart(4, "0");
  findings.textContent = JSON.stringify(found).replace(/[^ -~]|[<>&]/g, escaped);
  document.body.append(findings);
});
