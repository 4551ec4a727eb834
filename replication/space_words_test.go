package replication

import (
	"strings"
	"testing"

	"github.com/storaged/storaged/replication/ledger"
)

// TestShortOf: each refusal says what is short and what to do; none names a replica that there is not.
func TestShortOf(t *testing.T) {
	for _, c := range []struct {
		name string
		room ledger.Room
		want string
	}{
		{"others fill most disks", ledger.Room{Exhausted: true}, "remove them"},
		{"all that may live does", ledger.Room{Server: "a", Told: 100, Exhausted: true}, "delete volumes"},
		{"on its way", ledger.Room{Server: "a", Told: 100, OutBytes: 70}, "replica a can take 60 bytes more"},
		{"below the reserve", ledger.Room{Server: "a", Told: 20}, "replica, a, has 20 bytes left"},
	} {
		if got := shortOf(c.room, 40, 10).Error(); !strings.Contains(got, c.want) || strings.Contains(got, ", ,") {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}
