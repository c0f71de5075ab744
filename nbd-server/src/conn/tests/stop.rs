//! The end of a server, as its clients see it.

use super::*;

#[test]
fn a_stop_refuses_what_is_new_finishes_what_was_begun_and_flushes_before_it_closes() {
    talk_to(
        |rt, mem| Odd::new(mem).slow(rt, Duration::from_secs(3)),
        |client, odd| async move {
            client.write(1, 0, &[9; 5000]).await;
            client.rt.sleep(Duration::from_secs(1)).await;
            let hall = Rc::clone(&client.hall);
            let stop = client.rt.spawn(async move { hall.stop(Duration::from_secs(10)).await });
            client.rt.sleep(Duration::from_millis(100)).await;
            // The reader was waiting since before the stop: the first may still be begun.
            client.ask(wire::command::CACHE, 2, 0, 512).await;
            let error = client.errno(2).await;
            assert!([0, 108].contains(&error), "{error}");
            client.ask(wire::command::CACHE, 3, 0, 512).await;
            assert_eq!(client.errno(3).await, 108);
            assert_eq!(client.errno(1).await, 0);
            stop.await;
            assert_eq!(odd.flushes.get(), 1);
            assert!(odd.flushed_last.get(), "the flush came after the write");
            client.ends().await;
        },
    );
}

#[test]
fn a_stop_does_not_wait_for_ever_for_a_client_that_reads_nothing() {
    world(9).run(|rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        let hall = hall(&rt, Look::new("disk"), &mem);
        let client = connect(&hall, 1000).negotiate(true).await;
        client.ask(wire::command::READ, 1, 0, 1 << 20).await;
        rt.sleep(Duration::from_secs(1)).await;
        let start = rt.now();
        hall.stop(Duration::from_secs(10)).await;
        assert!(rt.now() - start < Duration::from_secs(11));
        client.task.await;
    });
}

#[test]
fn a_client_in_the_handshake_hears_of_the_stop() {
    world(9).run(|rt| async move {
        let hall = hall(&rt, Look::new("disk"), &Mem::new(Sectors(8)));
        let client = connect(&hall, 1000);
        client.end.write(&[0, 0, 0, 3]).await.unwrap();
        assert_eq!(client.end.read(18).await.len(), 18);
        hall.stop(Duration::from_secs(10)).await;
        assert_eq!(client.end.read(1).await, []);
        client.task.await;
    });
}
