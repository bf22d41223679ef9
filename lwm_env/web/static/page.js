// What gallery and room share: the server's API, elements of the page, messages to its user.

export const $ = (id) => document.getElementById(id);

let access = sessionStorage.getItem("lwm-access");
export const accessToken = () => access;

export async function api(method, path, { body, token, raw } = {}) {
  const headers = {};
  if (token) headers["X-Lwm-Token"] = token;
  if (access) headers.Authorization = `Bearer ${access}`;
  if (body !== undefined && !(body instanceof Blob)) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  const answer = await fetch(`/api/${path}`, { method, headers, body });
  if (answer.status === 401 && askForAccess()) return api(method, path, { body, token, raw });
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    const text = typeof told.detail === "string" ? told.detail : `the server answered ${answer.status}`;
    throw Object.assign(new Error(text), { status: answer.status });
  }
  if (raw) return answer.blob();
  return answer.status === 204 ? null : answer.json();
}

function askForAccess() {
  access = prompt("This server asks for its access token.");
  if (access) sessionStorage.setItem("lwm-access", access);
  return Boolean(access);
}

let toastTimer = 0;
export function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, 5000);
}

export const attempt = (work) => async (...args) => {
  try {
    return await work(...args);
  } catch (error) {
    toast(error.message);
  }
};

export function element(tag, { text, className, title, onclick } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  if (title) made.title = title;
  if (onclick) made.addEventListener("click", onclick);
  made.append(...children);
  return made;
}

export function download(blob, name) {
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const nameOf = (world) => world.id.replace(/^LWM-/, "").replace(/-v\d+$/, "");
