package catalog

import (
	"fmt"
	"math"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/copies"
)

// UsableBytes returns how much data the stores of the cluster could hold, with all copies of it, if they were empty. Stores of
// nodes that are down count, those of nodes that are leaving do not. 0: it is not known, because a node has not said how large its
// stores are.
func (s *State) UsableBytes() int64 {
	var room []int64
	for _, n := range s.nodes {
		if !n.Usable() {
			continue
		}
		var total int64
		for _, st := range n.Stores {
			if st.CapacityBytes <= 0 {
				return 0
			}
			total = added(total, st.CapacityBytes)
		}
		room = append(room, total)
	}
	return copies.Fit(room, s.cluster.Replicas)
}

// ProvisionedBytes returns the sum of the sizes of the volumes that can be opened.
func (s *State) ProvisionedBytes() (total int64) {
	for _, v := range s.volumes {
		if v.State == storage.VolumeReady {
			total = added(total, v.SizeBytes)
		}
	}
	return total
}

// mayProvision returns why a volume must not have so many bytes, of which it had some before. Volumes take space as they are
// written, so together they may be larger than the stores. But a single volume that is larger than the stores is a mistake, and so
// is a total above the limit. While it is not known what the stores hold, nothing is refused.
func (s *State) mayProvision(op, subject string, before, bytes int64, percent int) error {
	usable := s.UsableBytes()
	if percent == 0 || usable == 0 {
		return nil
	}
	if bytes > usable {
		return refuse(op, storage.KindInvalid, subject, "with %s it could never be filled: the stores hold %s of data, with %d copies; make it "+
			"smaller, add nodes or disks, or say --overcommit", inUnits(bytes), inUnits(usable), s.cluster.Replicas)
	}
	limit, sum := share(usable, percent), added(s.ProvisionedBytes()-before, bytes)
	if sum > limit {
		return refuse(op, storage.KindNoSpace, subject, "with %s all volumes together would have %s, and may have %s: %d %% of the %s that the "+
			"stores hold, with %d copies; delete volumes, add nodes or disks, raise --provision-limit of the nodes, or say --overcommit",
			inUnits(bytes), inUnits(sum), inUnits(limit), percent, inUnits(usable), s.cluster.Replicas)
	}
	return nil
}

// added is the sum of two numbers that are not negative, or the largest number.
func added(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// share returns percent of n, rounded down, or the largest number.
func share(n int64, percent int) int64 {
	if n/100 > math.MaxInt64/int64(percent)-1 {
		return math.MaxInt64
	}
	return n/100*int64(percent) + n%100*int64(percent)/100
}

// inUnits writes a size for people: "1.5 TiB".
func inUnits(n int64) string {
	units, at := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}, 0
	f := float64(n)
	for f >= 1024 && at < len(units)-1 {
		f, at = f/1024, at+1
	}
	return fmt.Sprintf("%.4g %s", f, units[at])
}
