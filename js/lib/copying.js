// Text into the clipboard.

/** Copy a text; throws where the browser does not allow it. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyByHand(text); // browsers have no clipboard for pages from another machine without https
  }
}

function copyByHand(text) {
  const box = document.createElement("textarea");
  box.value = text;
  box.readOnly = true;
  box.style.cssText = "position: fixed; opacity: 0";
  const focused = document.activeElement;
  document.body.append(box);
  box.select();
  const isCopied = document.execCommand("copy");
  box.remove();
  focused?.focus({ preventScroll: true });
  if (!isCopied) throw new Error("The browser does not let this page copy.");
}
