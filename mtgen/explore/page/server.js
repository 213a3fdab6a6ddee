// Requests to the page's server.

/** Post a message and return the answer; throws an error with the server's text. */
export async function post(path, message = {}) {
  const headers = {"Content-Type": "application/json"};
  return answered(fetch(`/api/${path}`, {method: "POST", headers, body: JSON.stringify(message)}));
}

export const get = path => answered(fetch(`/api/${path}`));

async function answered(request) {
  let response, answer;
  try {
    response = await request;
    answer = await response.json();
  } catch {
    throw new Error("The server does not respond. Start `mtgen explore` again, then reload this page.");
  }
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** A function that posts messages one at a time; while one is answered, only the latest other message waits. */
export function oneAtATime(path, show, fail) {
  let waiting = null, busy = false;
  return async message => {
    waiting = message;
    if (busy) return;
    busy = true;
    while (waiting !== null) {
      const sent = waiting, begin = performance.now();
      waiting = null;
      try {
        show(await post(path, sent), (performance.now() - begin) / 1000, sent);
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

/** An opened file as a message. */
export async function fileMessage(file, maxBytes) {
  if (file.size > maxBytes) {
    throw new Error(`${file.name}: is ${(file.size / 1e6).toFixed(1)} MB; possible: up to ${maxBytes / 1e6} MB`);
  }
  return {name: file.name || "image.png", data: base64(new Uint8Array(await file.arrayBuffer()))};
}

/** The pixels of a picture as a message. */
export const pictureMessage = (frame, name) => ({name, data: frame.images.slice(frame.images.indexOf(",") + 1)});
