//! Configurations there and back, and the row order of `wqkv`.

use intern_model::weights::{fuse_wqkv, split_wqkv};
use intern_model::{Architecture, ModelConfig, RopeScaling, rope_inv_freq};
use serde_json::json;

#[test]
fn every_family_and_scaling_survives_config_json() {
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        attention_factor: Some(1.2),
        beta_fast: 16.0,
        beta_slow: 2.0,
        mscale: Some(0.7),
        mscale_all_dim: None,
        truncate: false,
        original_max_position_embeddings: 512,
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 512,
    };
    let scalings = [
        RopeScaling::None,
        RopeScaling::Linear { factor: 2.0 },
        RopeScaling::Dynamic { factor: 3.0 },
        llama3,
        yarn,
    ];
    for arch in Architecture::ALL {
        for rope_scaling in &scalings {
            let config = ModelConfig {
                rope_scaling: rope_scaling.clone(),
                eos_token_ids: vec![2, 5],
                bos_token_id: Some(1),
                ..ModelConfig::small(arch, 100, 64, 3, 4, 2)
            };
            assert_eq!(ModelConfig::from_json(&config.to_json()).unwrap(), config);
        }
    }
}

#[test]
fn both_spellings_of_rope_are_read() {
    let mut old = ModelConfig::small(Architecture::Llama, 100, 64, 3, 4, 2).to_json();
    let mut new = old.clone();
    old["rope_theta"] = json!(5e5);
    old["rope_scaling"] = json!({"type": "linear", "factor": 4.0});
    new.as_object_mut().unwrap().remove("rope_theta");
    new.as_object_mut().unwrap().remove("rope_scaling");
    new["rope_parameters"] = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5});
    assert_eq!(ModelConfig::from_json(&old).unwrap(), ModelConfig::from_json(&new).unwrap());
}

#[test]
fn mistakes_name_the_key() {
    let check = |key: &str, value: serde_json::Value, expect: &str| {
        let mut config = ModelConfig::small(Architecture::Llama, 100, 64, 3, 4, 2).to_json();
        config[key] = value;
        let error = format!("{:#}", ModelConfig::from_json(&config).unwrap_err());
        assert!(error.contains(expect), "{error}");
    };
    check("model_type", json!("gpt2"), "model_type gpt2 is not supported");
    check("hidden_size", json!("64"), "hidden_size is \"64\", expected a whole number");
    check("num_key_value_heads", json!(3), "not a multiple of num_key_value_heads 3");
    check("hidden_act", json!("gelu"), "hidden_act gelu");
    check("rope_scaling", json!({"rope_type": "longrope"}), "longrope is not supported");
    check("rope_scaling", json!({"rope_type": "linear"}), "without `factor`");
    check("head_dim", json!(15), "head_dim 15 is odd");
}

#[test]
fn wqkv_splits_per_key_value_head_and_fuses_back() {
    let config = ModelConfig::small(Architecture::InternLm2, 10, 16, 1, 4, 2); // heads of 4
    let rows = (4 + 2 * 2) * 4;
    let fused: Vec<u32> = (0..rows * 3).collect();
    let [q, k, v] = split_wqkv(&config, &fused, 3);
    // Group 0 is rows 0..16: two query heads, a key, a value.
    assert_eq!(q[..24], fused[..24]);
    assert_eq!(k[..12], fused[24..36]);
    assert_eq!(v[..12], fused[36..48]);
    assert_eq!(q[24..], fused[48..72]);
    assert_eq!(fuse_wqkv(&config, &q, &k, &v, 3), fused);
}

#[test]
fn dynamic_scaling_starts_beyond_the_trained_context() {
    let config = ModelConfig {
        rope_scaling: RopeScaling::Dynamic { factor: 2.0 },
        max_position_embeddings: 32,
        ..ModelConfig::small(Architecture::InternLm2, 10, 16, 1, 2, 1)
    };
    let plain = ModelConfig { rope_scaling: RopeScaling::None, ..config.clone() };
    assert_eq!(rope_inv_freq(&config, 32), rope_inv_freq(&plain, 32));
    assert_ne!(rope_inv_freq(&config, 33), rope_inv_freq(&plain, 33));
}
