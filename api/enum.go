package api

// EnumTable translates the values of an enumeration into those of messages and back.
type EnumTable[D ~string, W ~int32] []struct {
	Domain D
	Wire   W
}

// enumUnknown is how a value that this version does not know reads, whatever its type.
const enumUnknown = "unknown"

// ToProto returns what d is in messages, and 0 (unspecified) if that is nothing.
func (t EnumTable[D, W]) ToProto(d D) (w W) {
	for _, row := range t {
		if row.Domain == d {
			return row.Wire
		}
	}
	return w
}

// FromProto returns what w means. What a newer version may send and this one does not know reads as "unknown".
func (t EnumTable[D, W]) FromProto(w W) D {
	for _, row := range t {
		if row.Wire == w {
			return row.Domain
		}
	}
	return enumUnknown
}
