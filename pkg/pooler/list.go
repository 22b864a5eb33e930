package pooler

// link is a value's place in a list. The zero value is in no list.
type link[T any] struct{ prev, next *T }

// list is a doubly linked list whose links are inside its values, so that
// moving a connection from list to list neither allocates nor searches. A
// value is in one list of a kind at most; at returns the value's link.
type list[T any] struct {
	head, tail *T
	n          int
	at         func(*T) *link[T]
}

func (l *list[T]) pushBack(v *T) {
	lk := l.at(v)
	lk.prev, lk.next = l.tail, nil
	if l.tail != nil {
		l.at(l.tail).next = v
	} else {
		l.head = v
	}
	l.tail = v
	l.n++
}

func (l *list[T]) pushFront(v *T) {
	lk := l.at(v)
	lk.prev, lk.next = nil, l.head
	if l.head != nil {
		l.at(l.head).prev = v
	} else {
		l.tail = v
	}
	l.head = v
	l.n++
}

func (l *list[T]) remove(v *T) {
	lk := l.at(v)
	if lk.prev != nil {
		l.at(lk.prev).next = lk.next
	} else {
		l.head = lk.next
	}
	if lk.next != nil {
		l.at(lk.next).prev = lk.prev
	} else {
		l.tail = lk.prev
	}
	*lk = link[T]{}
	l.n--
}
