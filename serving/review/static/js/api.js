// Requests to the server that gave this page; errors are its sentences.

export async function get(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") query.append(key, one);
    }
  }
  const text = query.toString();
  return answer(await reach(text ? `api/${path}?${text}` : `api/${path}`));
}

export async function post(path, content) {
  const headers = {"Content-Type": "application/json"};
  return answer(await reach(`api/${path}`, {method: "POST", headers, body: JSON.stringify(content)}));
}

export async function signOut() {
  await reach("sign-out", {method: "POST"});
  location.assign("sign-in");
}

export const named = (name) => name.split("/").map(encodeURIComponent).join("/");
export const thumbnail = (row, version) => `api/thumbnails/${named(row.name)}?v=${version}`;

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch {
    throw new Error("the server does not answer; see whether it still runs");
  }
}

async function answer(response) {
  const content = await response.json().catch(() => null);
  if (response.ok) return content;
  if (response.status === 401) throw new Error("you are signed out; reload the page to sign in");
  throw new Error(content?.detail ?? `the server answered ${response.status}`);
}
