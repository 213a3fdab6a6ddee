// The page's questions to its server.

/** The answer to a question; an error's message says what is wrong with it. */
export async function post(path, message = {}) {
  return answered(fetch(`/api/${path}`, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(message)}));
}

export const get = path => answered(fetch(`/api/${path}`));

async function answered(request) {
  let response, answer;
  try {
    response = await request;
    answer = await response.json();
  } catch {
    throw new Error("The page's server does not answer: start `mtgen explore` again, then load this page anew.");
  }
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** Ask one question at a time: while it is answered, only the last of those that come up waits. */
export function oneAtATime(path, show, fail) {
  let waiting = null, busy = false;
  return async message => {
    waiting = message;
    if (busy) return;
    busy = true;
    while (waiting !== null) {
      const asked = waiting, begun = performance.now();
      waiting = null;
      try {
        show(await post(path, asked), (performance.now() - begun) / 1000, asked);
      } catch (error) {
        if (waiting === null) fail(error);
      }
    }
    busy = false;
  };
}

export function base64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}

/** A chosen file as it is sent. */
export async function fileMessage(file, most) {
  if (file.size > most) throw new Error(`${file.name}: is ${(file.size / 1e6).toFixed(1)} MB; possible: up to ${most / 1e6} MB`);
  return {name: file.name || "image.png", data: base64(new Uint8Array(await file.arrayBuffer()))};
}

/** A drawn picture's pixels as a file that is sent. */
export const pictureMessage = (frame, name) => ({name, data: frame.images.slice(frame.images.indexOf(",") + 1)});
