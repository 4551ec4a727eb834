package volume

import (
	"testing"

	storage "github.com/storaged/storaged"
)

// TestNewerLimitsStay: what a watch or an answer says late of a volume, of an older revision, does not bring old limits back. Guards
// the order of revisions in throttle.set (tried without).
func TestNewerLimitsStay(t *testing.T) {
	old, now := storage.VolumeLimits{MaxIOPS: 10}, storage.VolumeLimits{MaxIOPS: 1000}
	th := newThrottle()
	th.set(2, now)
	th.set(1, old)
	if th.limits != now {
		t.Errorf("the limits are %+v, want those of the newer revision, %+v", th.limits, now)
	}
	if th.set(3, old); th.limits != old {
		t.Errorf("the limits are %+v, want those of the newest revision, %+v", th.limits, old)
	}
}
