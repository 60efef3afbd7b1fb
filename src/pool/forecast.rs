//! What a pool makes of a forecast: more VMs that nobody has used are kept ready. Never fewer, and whatever holds back such a VM
//! holds back these.

use super::Pool;
use super::policy::Forecasting;

impl Pool {
    /// Notes how many sessions will come at once, for what is decided from now on; `None` when that is not known.
    pub fn set_forecast(&mut self, sessions: Option<u32>) {
        self.forecast = sessions;
    }

    /// VMs that nobody has used, to be kept beside those that are wanted.
    pub(super) fn warm_wanted(&self) -> u32 {
        let warm = self.policy.warm;
        match self.policy.forecast {
            Forecasting::Off | Forecasting::Observe => warm,
            Forecasting::On => {
                let said = self.forecast.unwrap_or_default();
                warm.max(said.min(self.policy.warm_max))
            }
        }
    }
}
