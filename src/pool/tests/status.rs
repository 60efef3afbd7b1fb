//! What a pool shows of itself.

use super::*;

#[test]
fn status_shows_what_the_pool_knows() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    pool.handle(now, Event::VmExited(VmId(1), failed("no agent")));
    pool.handle(now, open(2));
    let later = now + Duration::from_millis(500);
    insta::assert_json_snapshot!(pool.status(later), @r#"
    {
      "mode": "open",
      "max-vms": 1,
      "up-limit": 1,
      "kept": 0,
      "reuse": "always",
      "share": "host",
      "warm": 0,
      "demand": 2,
      "vms": [],
      "queued": [
        {
          "session": 1,
          "share": "host",
          "home": null
        },
        {
          "session": 2,
          "share": "host",
          "home": null
        }
      ],
      "figures": {
        "demand": 2,
        "waiting": 2,
        "want": 1,
        "have": 0,
        "starting": 0,
        "limit": 1
      },
      "decision": {
        "decided": "wait",
        "held": {
          "by": "back-off"
        },
        "figures": {
          "demand": 1,
          "waiting": 1,
          "want": 1,
          "have": 0,
          "starting": 0,
          "limit": 1
        }
      },
      "start-failures": 1,
      "degraded": false,
      "start-failure": "no agent",
      "retry-in-s": 10,
      "shortage": null,
      "held": {
        "by": "back-off"
      }
    }
    "#);
}
