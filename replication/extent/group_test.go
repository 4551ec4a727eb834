package extent

import (
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

func TestCheckRead(t *testing.T) {
	r := newRig(t, testConfig(memFS(t)))
	read := func(v storage.VolumeID, session storage.SessionID, generation storage.Generation, want storage.Kind) {
		t.Helper()
		if err := r.g.CheckRead(op.ReadRequest{Volume: v, Session: session, Generation: generation}); storage.KindOf(err) != want {
			t.Errorf("volume %d session %d generation %d: %v", v, session, generation, err)
		}
	}
	read(1, 0, 1, storage.KindNone)
	read(1, 3, 1, storage.KindFenced)
	r.ok(request{o: op.Op{Kind: op.OpenSession, Volume: 1, Session: 3, Generation: 2}})
	read(1, 3, 2, storage.KindNone)
	read(1, 0, 2, storage.KindNone)
	read(1, 0, 1, storage.KindFenced)
	r.ok(request{o: op.Op{Kind: op.CloseSession, Volume: 1, Session: 3}})
	read(1, 3, 2, storage.KindFenced)
	r.ok(request{o: op.Op{Kind: op.DeleteVolume, Volume: 1}})
	read(1, 0, 2, storage.KindNotFound)
}
