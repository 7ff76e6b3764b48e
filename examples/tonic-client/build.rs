//! Client and server of `shop.Prices`, from a description in Rust: no `protoc` is needed.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let quote = Method::builder()
        .name("quote")
        .route_name("Quote")
        .input_type("crate::prices::Sku")
        .output_type("crate::prices::Price")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    let prices = Service::builder()
        .package("shop")
        .name("Prices")
        .method(quote)
        .build();
    Builder::new().compile(&[prices]);
}
