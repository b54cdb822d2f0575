// Ours: opens the documents that the page names.
const documents = JSON.parse(document.getElementById("swagger-ui").dataset.documents);
SwaggerUIBundle({
  urls: documents,
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
  layout: "StandaloneLayout",
  deepLinking: true,
  validatorUrl: null,
});
