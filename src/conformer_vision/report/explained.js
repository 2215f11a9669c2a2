for (const control of document.querySelectorAll("[data-choose]")) {
  const kind = control.dataset.choose;
  const article = control.closest("article");
  const show = () => {
    for (const part of article.querySelectorAll(`[data-${kind}]`)) part.hidden = part.dataset[kind] !== control.value;
    if (kind === "block") control.nextElementSibling.textContent = `${control.value} of ${control.max}`;
  };
  control.addEventListener("input", show);
  show();  // browsers restore what was chosen before
}
