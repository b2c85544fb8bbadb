// Validates GLB and glTF files with the Khronos validator: node validate.cjs FILE... prints {file: {numErrors, errors}}.
"use strict";
const fs = require("fs");
const path = require("path");
const validator = require("gltf-validator");

async function validate(file) {
  const report = await validator.validateBytes(new Uint8Array(fs.readFileSync(file)), {
    uri: path.basename(file),
    maxIssues: 0,
    externalResourceFunction: async (uri) =>
      new Uint8Array(fs.readFileSync(path.resolve(path.dirname(file), decodeURIComponent(uri)))),
  });
  const errors = report.issues.messages.filter((message) => message.severity === 0);
  return {
    numErrors: report.issues.numErrors,
    numWarnings: report.issues.numWarnings,
    errors: errors.map((message) => `${message.code} ${message.pointer}: ${message.message}`),
    warnings: [...new Set(report.issues.messages.filter((message) => message.severity === 1).map((m) => m.code))],
  };
}

(async () => {
  const reports = {};
  for (const file of process.argv.slice(2)) reports[file] = await validate(file);
  console.log(JSON.stringify(reports));
})();
