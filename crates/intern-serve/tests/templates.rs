//! What real chat templates tell about tools and thoughts, and that the document names every route.

use std::path::PathBuf;

use intern_lm::reasoning;
use intern_lm::tools::ToolFormat;
use serde_json::Value;

#[test]
fn formats_are_told_by_real_templates() {
    let assets = std::env::var_os("INTERN_ASSETS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/assets")),
        PathBuf::from,
    );
    let dir = assets.join("serve/chat-templates-llamacpp");
    if !dir.exists() {
        println!("skipped: no {}", dir.display());
        return;
    }
    for (name, format, thinks) in [
        ("Qwen-Qwen2.5-7B-Instruct", ToolFormat::Hermes, false),
        ("Qwen-Qwen3-0.6B", ToolFormat::Hermes, true),
        ("Qwen-QwQ-32B", ToolFormat::Hermes, true),
        ("Qwen3-Coder", ToolFormat::Qwen3Coder, false),
        ("GLM-4.6", ToolFormat::Glm, true),
        ("ByteDance-Seed-OSS", ToolFormat::None, false),
        ("meetkai-functionary-medium-v3.1", ToolFormat::None, false),
        ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", ToolFormat::Hermes, false),
        ("meta-llama-Llama-3.1-8B-Instruct", ToolFormat::Llama3, false),
        ("meta-llama-Llama-3.3-70B-Instruct", ToolFormat::Llama3, false),
        ("mistralai-Mistral-Nemo-Instruct-2407", ToolFormat::Mistral, false),
        ("Mistral-Small-3.2-24B-Instruct-2506", ToolFormat::Mistral, false),
        ("google-gemma-2-2b-it", ToolFormat::None, false),
        ("microsoft-Phi-3.5-mini-instruct", ToolFormat::None, false),
    ] {
        let template = std::fs::read_to_string(dir.join(name).with_extension("jinja"))
            .or_else(|_| std::fs::read_to_string(dir.join(format!("{name}.jinja"))))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(ToolFormat::detect(&template), format, "{name}");
        assert_eq!(reasoning::thinks(&template), thinks, "{name}");
    }
    assert_eq!(ToolFormat::detect(intern_tokenizer::internlm2::CHAT_TEMPLATE), ToolFormat::InternLm2);
}

#[test]
fn the_document_names_every_route() {
    let source = include_str!("../src/api/app.rs");
    let document: Value = serde_json::from_str(include_str!("../src/api/openapi.json")).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let mut count = 0;
    for line in source.lines() {
        let Some(path) = line.trim().strip_prefix(".route(\"").and_then(|l| l.split('"').next()) else {
            continue;
        };
        let path = path.replace("{*id}", "{id}");
        assert!(paths.contains_key(&path), "{path} is not in openapi.json");
        count += 1;
    }
    assert_eq!(count, paths.len(), "openapi.json names a route there is not");
}
