package catalog

import (
	"bytes"
	"fmt"
	storage "github.com/storaged/storaged"
	"testing"
)

// large is a state with n volumes, each opened once.
func large(b *testing.B, n int) (s *State, index uint64) {
	b.Helper()
	s = New()
	apply := func(c Command) {
		raw, err := Encode(c)
		if err != nil {
			b.Fatal(err)
		}
		index++
		if r := s.Apply(index, raw); r.Err != nil {
			b.Fatal(r.Err)
		}
	}
	apply(InitCluster{Cluster{ID: [16]byte{1}}})
	apply(AddNode{Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(1), CapacityBytes: 1}}})
	for range DefaultGroups {
		apply(AddGroup{s.NextGroup(), 1, storeID(1)})
		apply(SetGroupReady{s.NextGroup() - 1})
	}
	for i := range n {
		name := fmt.Sprint("v", i)
		apply(CreateVolume{Name: name, SizeBytes: 1 << 30, At: testTime})
		apply(Attach{Volume: storage.ByName(name), Holder: storage.NBDHolder(1, "n", false), Access: storage.AccessShared, At: testTime})
		apply(OpenSession{Volume: storage.ByName(name), Gateway: Gateway{Node: 1}, Attachment: s.lastAttachment, Instance: "i", At: testTime})
	}
	return s, index
}

func BenchmarkApply(b *testing.B) {
	s, index := large(b, 10_000)
	open, err := Encode(OpenSession{Volume: storage.ByName("v77"), Gateway: Gateway{Node: 1}, Attachment: 78, Instance: "i"})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		index++
		s.Apply(index, open)
	}
}

func BenchmarkCloneAndSnapshot(b *testing.B) {
	s, _ := large(b, MaxVolumes)
	b.Run("clone", func(b *testing.B) {
		for b.Loop() {
			s.Clone()
		}
	})
	raw, err := s.Snapshot()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("snapshot", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		for b.Loop() {
			if _, err := s.Snapshot(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("restore", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		for b.Loop() {
			if _, err := Restore(bytes.NewReader(raw)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
