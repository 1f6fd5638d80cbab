// What every panel of the pack needs of the page: its style sheets, its colors, and when they change.

/** Load a style sheet once; `address` is relative to the pack's folder of scripts. */
export function loadStyle(address) {
  const href = new URL(`../${address}`, import.meta.url).href;
  if (document.querySelector(`link[href="${href}"]`)) return;
  const link = document.createElement("link");
  Object.assign(link, { rel: "stylesheet", href });
  document.head.append(link);
}

/** Call back when ComfyUI changes its colors; returns what ends it. */
export function onThemeChange(callback) {
  const observer = new MutationObserver(callback);
  for (const element of [document.documentElement, document.body]) {
    observer.observe(element, { attributes: true, attributeFilter: ["class", "style"] });
  }
  return () => observer.disconnect();
}

/** The value of a CSS variable where an element is. */
export function cssVariable(element, name) {
  return getComputedStyle(element).getPropertyValue(name).trim();
}

/** An element with a class, properties and children; strings become text. */
export function make(tag, className, properties = {}, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
