document.querySelectorAll("table.sortable").forEach((table) => {
  const value = (row, column) => {
    const text = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const number = Number(text.replace(/[,%]/g, ""));
    return text === "-" || text === "" ? null : Number.isNaN(number) ? text : number;
  };
  table.querySelectorAll("th button").forEach((button) => {
    const head = button.closest("th");
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      [...body.rows]
        .sort((one, other) => {
          const [a, b] = [value(one, head.cellIndex), value(other, head.cellIndex)];
          if (a === null || b === null) return (a === null) - (b === null);
          const order = typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1;
          return up ? order : -order;
        })
        .forEach((row) => body.append(row));
    });
  });
});
