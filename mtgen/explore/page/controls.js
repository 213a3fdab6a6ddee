// Small parts of forms.

export const IMAGE_TYPES = "image/png,image/jpeg,image/webp";

export const button = (label, attributes = {}) => make("button", {type: "button", ...attributes}, label);

/** A button that looks like a link. */
export const link = label => button(label, {class: "plain"});

/** A hidden file input with the button that opens it; `take` is called with each file, `fail` with its error. */
export function fileInput(id, accept, opener, take, fail) {
  const input = make("input", {type: "file", accept, class: "sr", id, tabindex: "-1"});
  opener.addEventListener("click", () => input.click());
  input.addEventListener("change", async () => {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    try {
      await take(file);
    } catch (error) {
      fail(error);
    }
  });
  return input;
}
