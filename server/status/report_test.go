package status

import (
	"slices"
	"testing"

	"github.com/storaged/storaged/server/placement"
)

// TestReportsNameSoManyConnections (I9): a node with thousands of clients does not send them all every second.
func TestReportsNameSoManyConnections(t *testing.T) {
	for _, n := range []int{0, 1, placement.MaxConnections, placement.MaxConnections + 1} {
		list := slices.Repeat([]placement.Connection{{Volume: "v", Client: "x:1"}}, n)
		if got := reported(list); !slices.Equal(got, list[:min(n, placement.MaxConnections)]) {
			t.Errorf("of %d connections %d are reported", n, len(got))
		}
	}
}
