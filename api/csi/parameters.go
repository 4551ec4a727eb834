package csi

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"

	storage "github.com/storaged/storaged"
)

// Keys of a StorageClass's parameters.
const (
	// parameterAccessibleFrom is "anywhere" (the default: every host reaches every volume) or "requested": only the zones
	// that the orchestrator asked for, so that a StorageClass can keep a volume's users near its replicas.
	parameterAccessibleFrom = "accessibleFrom"
	// parameterTakeOver is "true" when a publish to another host takes the volume away from the one before, for
	// orchestrators that publish without unpublishing what they gave up. It travels in the volume context.
	parameterTakeOver = "takeOver"
	// parameterLabels are the labels of new volumes: "KEY=VALUE,KEY=VALUE".
	parameterLabels = "labels"
)

// foreignPrefix is that of the keys which the orchestrator's own helpers add.
const foreignPrefix = "csi.storage.k8s.io/"

// parameters are what a StorageClass says.
type parameters struct {
	requested bool
	takeOver  bool
	labels    map[string]string
}

// parseParameters refuses what it does not know: a key that is misspelled must not be passed over.
func parseParameters(m map[string]string) (p parameters, err error) {
	for key, value := range m {
		switch {
		case strings.HasPrefix(key, foreignPrefix):
		case key == parameterAccessibleFrom && slices.Contains([]string{"anywhere", "requested"}, value):
			p.requested = value == "requested"
		case key == parameterTakeOver && slices.Contains([]string{"true", "false"}, value):
			p.takeOver = value == "true"
		case key == parameterLabels:
			if p.labels, err = storage.ParseLabels(strings.Split(value, ",")); err != nil {
				return p, invalid("parameter %s=%q: %v", key, value, errors.Unwrap(err))
			}
		case key == parameterAccessibleFrom:
			return p, invalid(`parameter %s=%q: want "anywhere" or "requested"`, key, value)
		case key == parameterTakeOver:
			return p, invalid(`parameter %s=%q: want "true" or "false"`, key, value)
		default:
			return p, invalid("parameter %q is not known; there are %s, %s and %s", key, parameterAccessibleFrom, parameterTakeOver, parameterLabels)
		}
	}
	return p, nil
}

// context is what of the parameters a volume carries with it.
func (p parameters) context() map[string]string {
	if !p.takeOver {
		return nil
	}
	return map[string]string{parameterTakeOver: "true"}
}

// Keys of a VolumeAttributesClass's parameters: what of a volume can be changed while it is in use. A class says all of it:
// what it does not name has no limit, so that what a volume has does not depend on the classes it had before.
const (
	// mutableIOPS is a number, mutableBandwidth one of bytes a second, perhaps with Ki, Mi, Gi or Ti; 0 is no limit. They hold
	// what all users of a volume at one gateway ask for together.
	mutableIOPS      = "max-iops"
	mutableBandwidth = "max-bandwidth"
)

// parseLimits reads mutable parameters. Nil means that they say nothing.
func parseLimits(m map[string]string) (*storage.VolumeLimits, error) {
	if len(m) == 0 {
		return nil, nil
	}
	var l storage.VolumeLimits
	for key, value := range m {
		var ok bool
		switch key {
		case mutableIOPS:
			var err error
			l.MaxIOPS, err = strconv.ParseInt(value, 10, 64)
			ok = err == nil
		case mutableBandwidth:
			l.MaxBytesPerSecond, ok = parseQuantity(value)
		default:
			return nil, invalid("mutable parameter %q is not known; there are %s and %s", key, mutableIOPS, mutableBandwidth)
		}
		if !ok {
			return nil, invalid("mutable parameter %s=%q: want a number, 0 for no limit; of bytes also with Ki, Mi, Gi or Ti", key, value)
		}
	}
	if err := l.Check(); err != nil {
		return nil, invalid("mutable parameters: %v", err)
	}
	return &l, nil
}

// parseQuantity reads a whole number, perhaps with a binary unit as Kubernetes writes them (100Mi), or as storagectl does
// (100MiB).
func parseQuantity(s string) (n int64, ok bool) {
	digits, shift := strings.TrimSuffix(s, "B"), 0
	for i, unit := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if cut, has := strings.CutSuffix(digits, unit); has {
			digits, shift = cut, 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > math.MaxInt64>>shift || n < 0 || shift == 0 && digits != s {
		return 0, false
	}
	return n << shift, true
}
