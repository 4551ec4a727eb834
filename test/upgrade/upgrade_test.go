//go:build upgrade

package upgrade

import (
	"flag"
	"testing"
)

var (
	beforeFlag  = flag.String("before", "", "`directory` with storaged and storagectl of the release before")
	presentFlag = flag.String("present", "", "`directory` with those of this release")
	hostFlag    = flag.Bool("host", false, "with a host that has a block device: root, /dev/fuse, loop devices")
)

// TestUpgrade goes from the release before to this one, back, and forward again, node by node. No client sees an error, what they saw
// is linearizable, and all volumes hold what they held. That is what docs/operations.md promises until the upgrade is finished. Then
// the release before is refused, and the rest goes on.
func TestUpgrade(t *testing.T) {
	u := start(t, releaseIn(t, *beforeFlag), releaseIn(t, *presentFlag))
	u.changeVolumes()
	u.restartAll(u.present, leaderFirst)
	u.restartHost(u.present)
	u.restartAll(u.before, leaderFirst)
	u.restartHost(u.before)
	u.restartAll(u.present, leaderLast)
	u.restartHost(u.present)
	u.finish()
	u.end()
}
