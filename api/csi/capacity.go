package csi

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// defaultVolumeBytes is the size of a volume when the orchestrator does not say one.
const defaultVolumeBytes = 1 << 30

// minFSBytes is the smallest device that the tools of a file system format: mkfs.xfs refuses less than 300 MiB, and an
// ext4 below 2 MiB has no room for a journal, below 8 MiB for little else. Without a type it is ext4.
var minFSBytes = map[string]int64{"": 8 << 20, ext4: 8 << 20, xfs: 300 << 20}

// CheckFSSize returns an error of KindInvalid for a volume that a file system of the type does not fit; empty means ext4.
func CheckFSSize(fsType string, sizeBytes int64) error {
	if least := minFSBytes[fsType]; sizeBytes < least {
		return storage.E("check", storage.KindInvalid, "size of the volume", fmt.Errorf("it has %d bytes, and %s needs %d (%d MiB); ask for more",
			sizeBytes, cmp.Or(fsType, ext4), least, least>>20))
	}
	return nil
}

// chooseSize returns the smallest size that a volume can have within the range and for the uses; preferred is taken when
// the range leaves it open. The error's code is OUT_OF_RANGE or INVALID_ARGUMENT.
func chooseSize(r *spec.CapacityRange, uses []use, preferredBytes int64) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	if required < 0 || limit < 0 {
		return 0, invalid("capacity_range has a negative size")
	}
	if limit == 0 {
		limit = math.MaxInt64
	}
	if required > limit {
		return 0, invalid("capacity_range requires %d bytes and limits them to %d", required, limit)
	}
	limit = min(limit, storage.MaxVolumeBytes)
	if required > limit {
		return 0, refuse(codes.OutOfRange, "%d bytes are required; a volume has at most %d", required, limit)
	}
	least := max(required, storage.MinVolumeBytes)
	for _, u := range uses {
		if !u.block {
			least = max(least, minFSBytes[u.fsType])
		}
	}
	least = (least + storage.BlockSize - 1) / storage.BlockSize * storage.BlockSize
	limit = limit / storage.BlockSize * storage.BlockSize
	if least > limit {
		return 0, refuse(codes.OutOfRange, "no volume fits: at least %d bytes are needed, at most %d are allowed", least, limit)
	}
	if required == 0 {
		return max(least, min(preferredBytes, limit)), nil
	}
	return least, nil
}

// inRange reports whether a volume that exists has a size that the range allows.
func inRange(r *spec.CapacityRange, sizeBytes int64) bool {
	return sizeBytes >= r.GetRequiredBytes() && (r.GetLimitBytes() == 0 || sizeBytes <= r.GetLimitBytes())
}

// availableBytes is how much more data the nodes can take with that many copies of everything, each on another node: the
// largest u with sum(min(free, u)) >= copies*u. With fewer nodes than copies there are as many copies as nodes.
func availableBytes(nodes []api.Node, copies int) int64 {
	var free []int64
	for _, n := range nodes {
		if n.State == api.NodeUp {
			free = append(free, max(0, n.FreeBytes()))
		}
	}
	copies = min(max(copies, 1), len(free))
	if copies == 0 {
		return 0
	}
	slices.Sort(free)
	slices.Reverse(free)
	// A node with more than u is as good as one with u: the k largest count as u each, the rest as what they have. The
	// copies-1 largest at most are cut off; the first k for which the bound holds is the answer.
	var rest int64
	for _, f := range free {
		rest += f
	}
	for k := range copies {
		u := rest / int64(copies-k)
		if free[k] <= u {
			return u
		}
		rest -= free[k]
	}
	return 0 // not reached: with k = copies-1, u = rest >= free[k]
}
