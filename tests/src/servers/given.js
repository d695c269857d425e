// A Node server on the listener that it is given as descriptor 3.
const http = require("node:http");

if (process.env.LISTEN_FDS !== "1" || process.env.LISTEN_PID !== String(process.pid)) {
  throw new Error(`LISTEN_FDS=${process.env.LISTEN_FDS} LISTEN_PID=${process.env.LISTEN_PID}`);
}
http
  .createServer((_, response) => {
    response.setHeader("Connection", "close");
    response.end(String(process.pid));
  })
  .listen({ fd: 3 });
