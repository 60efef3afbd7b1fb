//! `xpool metrics`.

use anyhow::Result;

use super::Context;

pub(super) async fn run(context: &Context) -> Result<()> {
    let (client, _) = context.connect().await?;
    context.printer.data(client.metrics().await?.trim_end());
    Ok(())
}
