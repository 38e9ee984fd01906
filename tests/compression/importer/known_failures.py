"""Node tests of the onnx package that the importer does not pass as they are, by reason."""

from __future__ import annotations

# These have to raise UnsupportedOperator, and nothing else.
UNSUPPORTED: dict[str, tuple[str, ...]] = {
    "operators that decode pictures or count words in front of a network: nothing in them can be trained": (
        "test_image_decoder_decode_bmp_rgb",
        "test_image_decoder_decode_jpeg2k_rgb",
        "test_image_decoder_decode_jpeg_bgr",
        "test_image_decoder_decode_jpeg_grayscale",
        "test_image_decoder_decode_jpeg_rgb",
        "test_image_decoder_decode_png_rgb",
        "test_image_decoder_decode_pnm_rgb",
        "test_image_decoder_decode_tiff_rgb",
        "test_image_decoder_decode_webp_rgb",
        "test_tfidfvectorizer_tf_batch_onlybigrams_skip0",
        "test_tfidfvectorizer_tf_batch_onlybigrams_skip5",
        "test_tfidfvectorizer_tf_batch_uniandbigrams_skip5",
        "test_tfidfvectorizer_tf_only_bigrams_skip0",
        "test_tfidfvectorizer_tf_onlybigrams_levelempty",
        "test_tfidfvectorizer_tf_onlybigrams_skip5",
        "test_tfidfvectorizer_tf_uniandbigrams_skip5",
    ),
    "classical machine learning: trees and thresholds have no gradient": (
        "test_ai_onnx_ml_binarizer",
        "test_ai_onnx_ml_tree_ensemble_set_membership",
        "test_ai_onnx_ml_tree_ensemble_single_tree",
    ),
    "operator set 1: broadcasting followed other rules before 7": (
        "test_not_2d",
        "test_not_3d",
        "test_not_4d",
    ),
}

# These differ from the stored results and have to equal ONNX Runtime's, on which the written models will run.
AS_ONNX_RUNTIME: dict[str, tuple[str, ...]] = {
    "align_corners divides by the rounded output length, as torch does too; the reference by the unrounded one": (
        "test_resize_downsample_scales_cubic_align_corners",
        "test_resize_downsample_scales_linear_align_corners",
    ),
    "indices of MaxUnpool are positions in the output; the reference takes them for positions in the natural shape": (
        "test_maxunpool_export_with_output_shape",
    ),
}

# These pass with other tolerances, (relative, absolute).
ROUNDING: dict[tuple[float, float], dict[str, tuple[str, ...]]] = {
    (2e-3, 1e-3): {
        "float16 has 11 bits: the softmax and the products round in another order than the reference": (
            "test_attention_4d_causal_fp16",
            "test_attention_4d_causal_fp16_expanded",
            "test_attention_4d_fp16",
        ),
    },
    (2e-2, 1e-2): {
        "bfloat16 has 8 bits: the softmax and the products round in another order than the reference": (
            "test_attention_3d_causal_bf16",
            "test_attention_3d_causal_bf16_expanded",
            "test_attention_4d_attn_mask_causal_bf16",
            "test_attention_4d_attn_mask_causal_bf16_expanded",
            "test_attention_4d_causal_bf16",
            "test_attention_4d_causal_bf16_expanded",
            "test_attention_4d_causal_padded_kv_bf16",
            "test_attention_4d_causal_padded_kv_bf16_expanded",
            "test_attention_4d_padded_kv_bf16",
            "test_attention_4d_padded_kv_bf16_expanded",
        ),
    },
    (1e-3, 1e-6): {
        "the imaginary part of a real signal is zero; the reference has rounding noise of 2e-7 there": (
            "test_dft_inverse",
            "test_dft_inverse_opset19",
        ),
    },
}
