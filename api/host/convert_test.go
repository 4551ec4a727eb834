package host

import (
	"testing"

	"github.com/storaged/storaged/api"
	pb "github.com/storaged/storaged/proto/storage/host/v1"
)

// wantWhole checks that every value of messages reads as one that is sent as it, and unspecified as what is named.
func wantWhole[D ~string, W ~int32](t *testing.T, table api.EnumTable[D, W], names map[int32]string, unspecified D) {
	t.Helper()
	for n, name := range names {
		if d := table.FromProto(W(n)); table.ToProto(d) != W(n) || (d == "unknown") != (n == 0 && unspecified == "unknown") {
			t.Errorf("%s reads as %q, which is sent as %d", name, d, table.ToProto(d))
		}
	}
	if d := table.FromProto(0); d != unspecified {
		t.Errorf("%s reads as %q, want %q", names[0], d, unspecified)
	}
	if w := table.ToProto(""); w != 0 {
		t.Errorf("what is not said is sent as %s", names[int32(w)])
	}
}

func TestEnumerations(t *testing.T) {
	wantWhole(t, accesses, pb.Access_name, "")
	wantWhole(t, vias, pb.Via_name, ViaAuto)
	wantWhole(t, states, pb.State_name, "unknown")
}
