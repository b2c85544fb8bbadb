// Prints the errors that the Khronos validator finds: node validate.cjs FILE... gives {file: [error, ...]}.
// Exit code 3: the package gltf-validator is not installed.
"use strict";
const fs = require("fs");
const path = require("path");

let validator;
try {
  validator = require("gltf-validator");
} catch (problem) {
  console.error(problem.message);
  process.exit(3);
}

async function errors(file) {
  const report = await validator.validateBytes(new Uint8Array(fs.readFileSync(file)), {
    uri: path.basename(file),
    maxIssues: 0,
    externalResourceFunction: async (uri) =>
      new Uint8Array(fs.readFileSync(path.resolve(path.dirname(file), decodeURIComponent(uri)))),
  });
  const found = report.issues.messages.filter((message) => message.severity === 0);
  return found.map((message) => `${message.code} ${message.pointer}: ${message.message}`);
}

(async () => {
  const reports = {};
  for (const file of process.argv.slice(2)) reports[file] = await errors(file);
  console.log(JSON.stringify(reports));
})();
