package replication

import (
	"reflect"
	"testing"

	"github.com/storaged/storaged/replication/extent/table"
)

// FuzzPullRequests: what is decoded here came from a peer. Nothing panics, and what is taken is encoded again to what is decoded to
// the same.
func FuzzPullRequests(f *testing.F) {
	f.Add(table.AppendRefs(nil, []table.Ref{{Volume: 1, Extent: 2, Epoch: 3, Index: 4}}))
	f.Add(appendPull(nil, "7-8-9", 5))
	f.Add(appendPull(nil, "7-8-9", 5, 6))
	f.Fuzz(func(t *testing.T, b []byte) {
		if ref, err := decodeRef(b); err == nil {
			if got, err := decodeRef(table.AppendRefs(nil, []table.Ref{ref})); err != nil || got != ref {
				t.Fatalf("%+v becomes %+v, %v", ref, got, err)
			}
		}
		for args := range 3 {
			name, numbers, err := decodePull(b, args)
			if err != nil {
				continue
			}
			if len(name) > maxManifestNameBytes || len(numbers) != args {
				t.Fatalf("a name of %d bytes and %d numbers of %d", len(name), len(numbers), args)
			}
			again, others, err := decodePull(appendPull(nil, name, numbers...), args)
			if err != nil || again != name || !reflect.DeepEqual(others, numbers) {
				t.Fatalf("%q %v becomes %q %v, %v", name, numbers, again, others, err)
			}
		}
	})
}
