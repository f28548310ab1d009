//! Writes checkpoints, an adapter and converted models with our logits, for
//! `tests/golden/check_interop.py` to open in transformers and PEFT.
//!
//! `cargo run -p intern-model --example interop -- OUT [ASSETS]`

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use intern_format::checkpoint::{self, save_safetensors};
use intern_model::{Architecture, Batch, LoraConfig, ModelConfig, Transformer, convert};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const TOKENS: [u32; 12] = [3, 90, 17, 44, 5, 6, 81, 20, 9, 33, 2, 60];

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let out = args.next().context("usage: interop OUT [ASSETS]")?;
    std::fs::create_dir_all(&out)?;
    for arch in Architecture::ALL {
        let config = ModelConfig {
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            ..ModelConfig::small(arch, 96, 32, 2, 4, 2)
        };
        let model = Transformer::init(&config, 3, &Device::Cpu)?;
        spread(&model.named_vars())?;
        let dir = out.join(arch.model_type());
        model.save(&dir, DType::F32)?;
        write_logits(&model, &dir)?;
    }
    let llama = out.join("internlm2-as-llama");
    convert::internlm2_to_llama(&out.join("internlm2"), &llama)?;
    write_logits(&Transformer::load(&out.join("internlm2"), DType::F32, &Device::Cpu)?, &llama)?;

    for (name, use_rslora, targets) in
        [("lora", false, vec!["q_proj", "down_proj"]), ("rslora", true, vec![])]
    {
        let mut model = Transformer::load(&llama, DType::F32, &Device::Cpu)?;
        let target_modules = targets.into_iter().map(str::to_owned).collect();
        model.add_lora(&LoraConfig { r: 4, alpha: 6.0, target_modules, use_rslora, seed: 9 })?;
        spread(&model.lora_vars())?;
        let dir = out.join(format!("adapter-{name}"));
        model.save_adapter(&dir, Some("internlm2-as-llama"))?;
        write_logits(&model, &dir)?;
    }
    if let Some(assets) = args.next() {
        for (name, tokenizer) in [("stories-model", "tok512.model"), ("stories-bin", "tok512.bin")] {
            let models = assets.join("models/stories260K");
            let dir = out.join(name);
            convert::llama2c_to_hf(
                &models.join("checkpoint_legacy.bin"),
                Some(&models.join(tokenizer)),
                &dir,
            )?;
            write_logits(&Transformer::load(&dir, DType::F32, &Device::Cpu)?, &dir)?;
        }
    }
    Ok(())
}

/// Values large enough that a misplaced tensor shows.
fn spread(vars: &[(String, candle_core::Var)]) -> Result<()> {
    for (i, (name, var)) in vars.iter().enumerate() {
        let offset = if name.contains("norm") { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..var.elem_count())
            .map(|j| offset + (((i * 37 + j * 101) * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.3)
            .collect();
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)?;
    }
    Ok(())
}

fn write_logits(model: &Transformer, dir: &Path) -> Result<()> {
    let logits = model.forward(&Batch::from_rows(&[&TOKENS]))?.squeeze(0)?;
    let bytes =
        logits.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let ids: Vec<u8> = TOKENS.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect();
    let tensors = [
        ("logits".to_owned(), checkpoint::DType::F32, logits.dims().to_vec(), bytes.into()),
        ("tokens".to_owned(), checkpoint::DType::I64, vec![1, TOKENS.len()], ids.into()),
    ];
    save_safetensors(&dir.join("interop.safetensors"), &tensors, &BTreeMap::new())?;
    Ok(())
}
