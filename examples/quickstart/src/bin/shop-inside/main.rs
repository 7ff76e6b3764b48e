//! Two services of the shop with Selvedge inside. In the making.
fn main() {}
