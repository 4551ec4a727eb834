package peer

// Methods of tests, with the numbers and terms of some that there are.
const (
	methodRaftAppend Method = 1
	methodRaftVote   Method = 3
	methodPropose    Method = 16
	methodRead       Method = 17
	methodBlocks     Method = 34
	methodNodeInfo   Method = 55
)

// termsOf are the terms of a method in tests.
func termsOf(m Method, order Order) Terms {
	t := Terms{From: Members, Order: order, SumsInRequests: m == methodRaftAppend || m == methodPropose,
		SumsInAnswers: m == methodRead || m == methodBlocks}
	switch m {
	case methodPropose, methodRead:
		t.From |= Gateways
	case methodNodeInfo:
		t.From |= Gateways | Strangers
	}
	return t
}
